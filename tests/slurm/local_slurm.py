"""A Slurm of this machine's own: munged, slurmctld and slurmd of Debian's packages with everything in one folder, ports that were free."""
from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIGURATION = """
ClusterName=workbook
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=30
MinJobAge=600
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class LocalSlurm:
    """A running cluster of `nodes` nodes of `cpus` CPUs each, all of them this machine; `environment` holds what its commands need.

    Stop it with `stop`, whatever happened. Its folder has a short path: sockets lie there, whose paths have 107 characters at most, and
    where they have more, every job is held as "launch failed".
    """

    def __init__(self, cpus: int = 4, nodes: int = 1):
        self.folder = folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.nodes = [f"node{number}" for number in range(1, nodes + 1)]
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder}/bin:{os.environ['PATH']}:/usr/sbin"}
        (folder / "state").mkdir(parents=True)
        (folder / "bin").mkdir()
        srun = folder / "bin" / "srun"      # Snakemake's executor takes SLURM_CONF from what it starts, which would look in /etc/slurm
        srun.write_text(f'#!/bin/sh\nSLURM_CONF={shlex.quote(str(folder / "slurm.conf"))} exec {shutil.which("srun")} "$@"\n')
        srun.chmod(0o755)
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o600)
        host, (port, *ports) = socket.gethostname().partition(".")[0], _free_ports(1 + nodes)
        lines = [f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={each} CPUs={cpus} State=UNKNOWN\n"
                 for node, each in zip(self.nodes, ports)]
        (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, user=getpass.getuser(), controller_port=port)
                                           + "".join(lines))
        self.daemons: dict[str, subprocess.Popen] = {}
        self._start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
                    f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed")
        _wait((folder / "munge.socket").exists, "munged", folder)
        self._start("slurmctld", "-D")
        for node in self.nodes:
            self.start_node(node)

    def _start(self, program: str, *arguments: str, name: str = "") -> None:
        with open(self.folder / f"{name or program}.out", "ab") as file:
            self.daemons[name or program] = subprocess.Popen([program, *arguments], env=self.environment, stdin=subprocess.DEVNULL, stdout=file,
                                                             stderr=file, start_new_session=True)

    def start_node(self, node: str = "node1") -> None:
        """Start a node's slurmd and wait until jobs can run there."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start("slurmd", "-D", "-N", node, name=node)
        _wait(lambda: self.state(node) in ("idle", "mixed", "allocated"), "slurmd", self.folder)

    def state(self, node: str = "node1") -> str:
        """What `sinfo` calls a node's state: idle, mixed, allocated, down, ...; "" while the controller does not answer."""
        return self.run("sinfo", "-h", "-n", node, "-o", "%T", check=False).strip().rstrip("*")

    def crash_node(self) -> None:
        """End the only node with all that runs on it, at once, as if its power had failed, and let the controller know."""
        slurmd = psutil.Process(self.daemons["node1"].pid)
        here = [slurmd, *slurmd.children(recursive=True), *(p for p in psutil.process_iter() if _is_step(p, self.folder))]
        for process in here:
            try:
                lost = process.children(recursive=True)
                process.send_signal(signal.SIGKILL)
                for child in lost:
                    child.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.daemons["node1"].wait()
        self.run("scontrol", "update", "nodename=node1", "state=down", "reason=crashed")

    def run(self, *command: str, check: bool = True, seconds: float = 60) -> str:
        """Output of one of Slurm's commands."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=seconds, check=check).stdout

    def stop(self) -> None:
        """End the daemons and what they started."""
        self.run("scancel", "--full", "--state=running", check=False)
        for process in reversed(self.daemons.values()):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
        for process in psutil.process_iter():
            if _is_step(process, self.folder):
                process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def missing() -> list[str]:
    """Programs of Debian's packages slurm-wlm and munge that are not there."""
    return [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]


def _is_step(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.name() == "slurmstepd" and process.environ().get("SLURM_CONF", "").startswith(str(folder))
    except psutil.Error:
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _wait(ready, what: str, folder: Path, seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            said = "".join(f"--- {p.name}\n{p.read_text(errors='replace')[-2000:]}" for p in sorted([*folder.glob("*.out"), *folder.glob("*.log")]))
            raise RuntimeError(f"{what} does not start:\n{said}")
        time.sleep(0.2)
