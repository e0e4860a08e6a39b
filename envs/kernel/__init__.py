"""The compiled simulation: records of numbers, and small functions over them.

The vocabulary is short: a *request* arrives, is *routed*, *prefilled* in batches, its KV cache is
*transferred*, it is *decoded* in a continuous batch and finishes; a *replica* starts, is ready,
drains and goes. `layout` names the records, `loop` owns time, every other module one noun.
"""
