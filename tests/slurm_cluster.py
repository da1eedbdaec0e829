"""A SLURM of one node, this machine, for tests: in a temporary folder, gone afterwards."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "sinfo", "scancel")
PATH = f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin"
PATIENCE = 30  # seconds, after which a daemon does not start

CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
MpiDefault=none
# No control groups: a container has none to give.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""

# Steps are started without SLURM_CONF: elsewhere the file is in its place in /etc.
SRUN = """\
#!/bin/sh
SLURM_CONF={folder}/slurm.conf exec {srun} "$@"
"""


class NotStartedError(RuntimeError):
    """A daemon of SLURM does not start here; the message has what it logged."""


def absent() -> list[str]:
    """List the programs that are missing here."""
    return [name for name in PROGRAMS if not shutil.which(name, path=PATH)]


@contextlib.contextmanager
def cluster(cpus: int = 2) -> Iterator[dict[str, str]]:
    """Start a cluster, which runs `cpus` jobs of one CPU at a time, and stop it at the end.

    Gives the environment in which `sbatch` and the like find it.
    """
    # Not in pytest's folder: the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as daemons:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("state", "spool", "bin"):
            (folder / part).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        words = {"folder": folder, "host": socket.gethostname().partition(".")[0], "cpus": cpus}
        words |= {"user": getpass.getuser(), "ports": free_ports(2)}
        configuration = folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(**words))
        (folder / "cgroup.conf").touch()
        srun = folder / "bin" / "srun"
        srun.write_text(SRUN.format(folder=folder, srun=shutil.which("srun", path=PATH)))
        srun.chmod(0o755)
        environment = os.environ | {
            "SLURM_CONF": str(configuration),
            "PATH": f"{srun.parent}:{PATH}",
        }

        def start(*command: str) -> None:
            log = daemons.enter_context((folder / f"{command[0]}.log").open("wb"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            daemons.callback(stop, process)

        munge = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "pid"}
        munge |= {"seed-file": folder / "seed", "num-threads": 2}
        start("munged", "--foreground", *(f"--{option}={value}" for option, value in munge.items()))
        wait_for((folder / "munge.socket").exists, folder)
        start("slurmctld", "-D", "-i", "-f", str(configuration))
        start("slurmd", "-D", "-f", str(configuration))
        wait_for(lambda: ask(environment, "sinfo", "-h", "-o", "%T") == ["idle"], folder)
        try:
            yield environment
        finally:
            ask(environment, "scancel", f"--user={getpass.getuser()}")
            wait_for(lambda: not ask(environment, "squeue", "-h"), folder)


def ask(environment: dict[str, str], *command: str) -> list[str]:
    """Give the lines that a command of SLURM prints; none if it fails."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stdout.splitlines() if done.returncode == 0 else []


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [found.getsockname()[1] for found in sockets]


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a daemon, politely first."""
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_for(happened: Callable[[], bool], folder: Path) -> None:
    """Wait for a daemon; what it logged comes with the error."""
    end = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > end:
            logs = [path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log")]
            raise NotStartedError("SLURM does not start:\n" + "\n".join(logs))
        time.sleep(0.1)
