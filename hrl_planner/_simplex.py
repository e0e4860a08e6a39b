"""A primal simplex for small dense linear programs with bounded variables.

    maximise c.x   subject to   A x <= b  or  A x = 0 (rows chosen by the caller),   0 <= x <= u

with b >= 0, so that x = 0 is a feasible start and there is no phase one. The tableau holds only
nonbasic columns, and every nonbasic variable stands at 0: one that rests at its upper bound is
replaced by u - x (its column, or its row while basic, changes sign), after Dantzig, *Upper bounds,
secondary constraints, and block triangularity in linear programming*, Econometrica 23, 1955.

The steepest reduced cost enters; ties of the ratio test go to the largest pivot. Planning problems
are degenerate, so after a run of steps that gain nothing Bland's rule takes over (*New finite
pivoting rules for the simplex method*, Mathematics of Operations Research 2, 1977), which cannot
cycle. Nothing is kept between solves: equal arguments give equal answers, ties included.

A tableau of r rows and k columns is an array of shape (r + 1, k + 1): last row reduced costs and
minus the objective, last column the values of the basic variables. Variables 0 .. r - 1 are the
rows' slacks, the others the columns in their order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrl_planner._compiled import compiled

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

OPTIMAL, UNBOUNDED, STOPPED = 0, 1, 2

_COST_TOLERANCE = 1e-10  # of the largest cost: below this no gain is left
_PIVOT_TOLERANCE = 1e-9
_TIE = 1e-10  # ratios this close count as equal
_PATIENCE = 12  # steps in a row without gain before Bland's rule
_STEPS_PER_VARIABLE = 50


class Program(NamedTuple):
    """A linear program and where its solution stands.

    Attributes:
        table: the tableau, shape (r + 1, k + 1).
        upper: upper bound of each variable, shape (r + k,); a slack with bound 0 makes its row an
            equation.
        basis: variable of each row, shape (r,).
        outside: variable of each column, shape (k,).
        flipped: whether a variable x is written as upper - x, shape (r + k,).
    """

    table: FloatArray
    upper: FloatArray
    basis: IntArray
    outside: IntArray
    flipped: BoolArray


@compiled
def new_program(table: FloatArray, upper: FloatArray) -> Program:
    """Return the program of a first tableau (A, b; c, 0), all slacks basic."""
    n_rows, n_columns = table.shape[0] - 1, table.shape[1] - 1
    return Program(
        table,
        upper,
        np.arange(n_rows),
        n_rows + np.arange(n_columns),
        np.zeros(n_rows + n_columns, np.bool_),
    )


@compiled
def flip(program: Program, column: int) -> None:
    """Move a nonbasic variable from its lower to its upper bound."""
    table = program.table
    variable = program.outside[column]
    table[:, -1] -= program.upper[variable] * table[:, column]
    table[:, column] *= -1.0
    program.flipped[variable] = not program.flipped[variable]


@compiled
def flip_where_feasible(program: Program, column: int) -> None:
    """Start a variable at its (finite) upper bound if no row objects."""
    table = program.table
    width = program.upper[program.outside[column]]
    for row in range(program.basis.size):
        value = table[row, -1] - width * table[row, column]
        if not 0.0 <= value <= program.upper[program.basis[row]]:
            return
    flip(program, column)


@compiled
def solve(program: Program) -> int:
    """Step to the optimum and say whether it was reached: OPTIMAL, UNBOUNDED or STOPPED."""
    table, upper = program.table, program.upper
    n_rows = program.basis.size
    tolerance = _COST_TOLERANCE * np.max(np.abs(table[n_rows, :-1])) if table.shape[1] > 1 else 0.0
    idle = 0
    for _ in range(_STEPS_PER_VARIABLE * upper.size):
        bland = idle > _PATIENCE
        column = _entering(program, tolerance, bland)
        if column < 0:
            return OPTIMAL
        row, step = _leaving(program, column, bland)
        width = upper[program.outside[column]]
        if row < 0 and width == np.inf:
            return UNBOUNDED
        if row < 0 or width <= step:
            flip(program, column)
            idle = 0
            continue
        idle = idle + 1 if step <= _TIE else 0
        _exchange(program, row, column)
    return STOPPED


@compiled
def _entering(program: Program, tolerance: float, bland: bool) -> int:
    """Return the column of the variable to raise, -1 at the optimum."""
    costs = program.table[-1]
    outside, upper = program.outside, program.upper
    best = -1
    most = tolerance
    for column in range(outside.size):
        if costs[column] > tolerance and upper[outside[column]] > 0.0:
            if bland:
                if best < 0 or outside[column] < outside[best]:
                    best = column
            elif costs[column] > most:
                most = costs[column]
                best = column
    return best


@compiled
def _leaving(program: Program, column: int, bland: bool) -> tuple[int, float]:
    """Return the row that stops a column's variable first, -1 if none, and how far it gets."""
    table, upper, basis = program.table, program.upper, program.basis
    best = -1
    least = np.inf
    for row in range(basis.size):
        rate = table[row, column]
        if rate > _PIVOT_TOLERANCE:
            step = max(table[row, -1], 0.0) / rate
        elif rate < -_PIVOT_TOLERANCE and upper[basis[row]] < np.inf:
            step = max(upper[basis[row]] - table[row, -1], 0.0) / -rate
        else:
            continue
        if step < least - _TIE:
            better = True
        elif step > least + _TIE:
            better = False
        elif bland:
            better = basis[row] < basis[best]
        else:
            better = abs(rate) > abs(table[best, column])
        if better:
            best = row
            least = min(step, least)
    return best, least


@compiled
def _exchange(program: Program, row: int, column: int) -> None:
    """Let the column's variable into the basis in place of the row's."""
    table, basis, outside = program.table, program.basis, program.outside
    if table[row, column] < 0.0:  # it leaves at its upper bound
        variable = basis[row]
        table[row] *= -1.0
        table[row, -1] += program.upper[variable]
        program.flipped[variable] = not program.flipped[variable]
    pivot_row = table[row]
    pivot = pivot_row[column]
    pivot_row[column] = 1.0
    pivot_row /= pivot
    for other in range(table.shape[0]):
        factor = table[other, column]
        if other != row and factor != 0.0:
            table[other, column] = 0.0
            table[other] -= factor * pivot_row
    basis[row], outside[column] = outside[column], basis[row]


@compiled
def read(program: Program) -> tuple[FloatArray, FloatArray]:
    """Return the values of the columns, shape (k,), and the duals of the rows, shape (r,)."""
    table, upper = program.table, program.upper
    n_rows = program.basis.size
    values = np.zeros(upper.size)
    duals = np.zeros(n_rows)
    for row in range(n_rows):
        values[program.basis[row]] = table[row, -1]
    for variable in range(n_rows, upper.size):
        if program.flipped[variable]:
            values[variable] = upper[variable] - values[variable]
    for column in range(program.outside.size):
        variable = program.outside[column]
        if variable < n_rows:
            cost = table[n_rows, column]
            duals[variable] = cost if program.flipped[variable] else -cost
    return values[n_rows:], duals
