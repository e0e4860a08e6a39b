"""How servers and users of a local cluster prove who they are: certificates, keys, tokens.

One authority signs the API server's certificate; the cluster's own users come with static tokens;
service accounts get theirs signed by the API server with `service_accounts.key`. Everything is made
anew for each cluster and readable by this user alone.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from hrl_planner.errors import LocalClusterError

ADMIN = "admin"
CONTROLLER_MANAGER = "system:kube-controller-manager"
SCHEDULER = "system:kube-scheduler"

_GROUPS = {ADMIN: "system:masters", CONTROLLER_MANAGER: "", SCHEDULER: ""}
_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
_DAYS = ("-days", "30")


@dataclass(frozen=True)
class Credentials:
    """Files in `directory`, and the tokens of the cluster's own users.

    Attributes:
        directory: holds `ca.crt`, `server.crt`, `server.key`, `service_accounts.key`, `tokens.csv`.
        server: `https://address:port` of the API server.
        tokens: user name -> bearer token.
    """

    directory: Path
    server: str
    tokens: dict[str, str]

    @property
    def ca(self) -> Path:
        """The certificate of the authority, which clients trust."""
        return self.directory / "ca.crt"

    def kubeconfig(self, user: str, token: str, path: Path) -> Path:
        """Write a kubeconfig for one user with one token."""
        return _write_kubeconfig(path, self.server, self.ca, user, {"token": token})

    def kubeconfig_with_token_file(self, user: str, token_file: Path, path: Path) -> Path:
        """Write a kubeconfig whose token is read from a file, as a pod's is."""
        return _write_kubeconfig(path, self.server, self.ca, user, {"tokenFile": str(token_file)})


def create_credentials(directory: Path, address: str, port: int) -> Credentials:
    """Make certificates for an API server at this address, keys, and tokens for its users."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    (directory / "server.ext").write_text(
        f"subjectAltName=IP:{address},IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc\n"
        "extendedKeyUsage=serverAuth\nkeyUsage=critical,digitalSignature\n"
        "authorityKeyIdentifier=keyid\n"
    )
    authority = ("-addext", "basicConstraints=critical,CA:TRUE")
    may_sign = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    _openssl(
        directory, "req", "-x509", *_CURVE, *_DAYS, "-subj", "/CN=local-cluster", *authority,
        *may_sign, "-keyout", "ca.key", "-out", "ca.crt",
    )  # fmt: skip
    _openssl(
        directory, "req", *_CURVE, "-subj", "/CN=kube-apiserver", "-keyout", "server.key",
        "-out", "server.csr",
    )  # fmt: skip
    _openssl(
        directory, "x509", "-req", *_DAYS, "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
        "-CAcreateserial", "-extfile", "server.ext", "-out", "server.crt",
    )  # fmt: skip
    _openssl(directory, "genrsa", "-out", "service_accounts.key", "2048")
    tokens = {user: secrets.token_hex(20) for user in _GROUPS}
    rows = (f'{token},{user},{user},"{_GROUPS[user]}"\n' for user, token in tokens.items())
    (directory / "tokens.csv").write_text("".join(rows))
    return Credentials(directory, f"https://{address}:{port}", tokens)


def _openssl(directory: Path, *arguments: str) -> None:
    if shutil.which("openssl") is None:
        raise LocalClusterError("openssl is missing; on Debian: apt-get install openssl")
    done = subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, text=True)
    if done.returncode:
        raise LocalClusterError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")


def _write_kubeconfig(
    path: Path, server: str, ca: Path, user: str, credentials: dict[str, str]
) -> Path:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "local",
        "clusters": [
            {"name": "local", "cluster": {"server": server, "certificate-authority": str(ca)}}
        ],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": user}}],
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
