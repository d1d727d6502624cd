"""Stand-ins for SLURM's sbatch, srun and scontrol, for jobs on this machine.

They do what a job's script and its tasks see of SLURM: the options of its #SBATCH lines, the
variables of the environment, tasks in process groups of their own, a signal before the time is up,
a job that is queued again, and exit codes. Unknown options are errors.

The time is up when what the job has written since it was last started matches TIME_UP.
"""

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

LONGEST = 120  # seconds that a job may go on when its time is up
APART = 0.3  # seconds between the signals to two nodes
KILL_WAIT = 30  # seconds from SIGTERM to SIGKILL


def install(folder):
    """Write the programs into a folder, to be put on the path, and python as what runs this."""
    for name in ("sbatch", "srun", "scontrol"):
        command = f'exec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"'
        write_program(folder / name, command)
    write_program(folder / "python", f'exec {shlex.quote(sys.executable)} "$@"')


def write_program(path, command):
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


def sbatch(arguments):
    """Run a job until it is not queued again, as sbatch --wait, and return its exit code."""
    parser = argparse.ArgumentParser("sbatch", allow_abbrev=False)
    for name in ("nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task"):
        parser.add_argument(f"--{name}", type=int, default=1)
    for name in ("job-name", "output", "time", "signal"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--open-mode", choices=("append", "truncate"), default="truncate")
    parser.add_argument("--requeue", action="store_true")
    *given, script = arguments
    lines = re.findall(r"^#SBATCH (.*)$", Path(script).read_text(), re.MULTILINE)
    options = parser.parse_args([*shlex.split(" ".join(lines)), *given])
    job = str(os.getpid())
    folder = Path(f"job-{job}").absolute()
    folder.mkdir()
    (folder / "requeues").write_text("yes" if options.requeue else "no")
    log = Path(options.output.replace("%x", options.job_name).replace("%j", job))
    tasks = options.nodes * options.ntasks_per_node
    environment = {
        "JOB_ID": job,
        "JOB_NAME": options.job_name,
        "NNODES": options.nodes,
        "NTASKS": tasks,
        "NTASKS_PER_NODE": options.ntasks_per_node,
        "CPUS_PER_TASK": options.cpus_per_task,
        "NODELIST": "localhost",
    }
    variables = {f"SLURM_{name}": str(value) for name, value in environment.items()}
    restarts = 0
    while True:
        begin = log.stat().st_size if log.exists() and options.open_mode == "append" else 0
        with open(log, "a" if options.open_mode == "append" else "w") as output:
            restarted = {"SLURM_RESTART_COUNT": str(restarts)} if restarts else {}
            process = subprocess.Popen(
                ["sh", script],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | variables | restarted | {"STAND_IN": str(folder)},
                start_new_session=True,
            )
            watch(process, folder, log, begin, options.signal)
        if not (folder / "requeue").exists():
            return process.returncode
        (folder / "requeue").unlink()
        restarts += 1


def watch(process, folder, log, begin, asked):
    """Wait for a job's end. Signal its tasks when the time is up, and end it at the time limit."""
    number = getattr(signal, f"SIG{asked.partition('@')[0]}")
    limit = None
    while process.poll() is None:
        time.sleep(0.05)
        if limit is None and re.search(os.environ["TIME_UP"], log.read_text()[begin:]):
            limit = time.monotonic() + LONGEST
            for task in reversed(groups(folder)):  # the first task, on another node, comes last
                send(task, number)
                time.sleep(APART)
        if limit is not None and time.monotonic() > limit:
            print("The job did not end in time.", file=sys.stderr)
            for group in (process.pid, *groups(folder)):
                send(group, signal.SIGKILL)
        if (folder / "requeue").exists():
            send(process.pid, signal.SIGTERM)
            process.wait()


def groups(folder):
    return [int(path.read_text()) for path in sorted(folder.glob("task-*"))]


def send(group, number):
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def srun(arguments):
    """Run the tasks of a job, and return their highest exit code: 128 and more after a signal."""
    parser = argparse.ArgumentParser("srun", allow_abbrev=False)
    parser.add_argument("--kill-on-bad-exit", choices=("0", "1"), default="0")
    parser.add_argument("--cpus-per-task", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(arguments)
    folder, per_node = Path(os.environ["STAND_IN"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = []
    for i in range(int(os.environ["SLURM_NTASKS"])):
        own = {"PROCID": i, "LOCALID": i % per_node, "NODEID": i // per_node}
        variables = {f"SLURM_{name}": str(value) for name, value in own.items()}
        environment = os.environ | variables
        tasks.append(subprocess.Popen(options.command, env=environment, start_new_session=True))
        (folder / f"task-{i:04}").write_text(str(tasks[-1].pid))
    killed = None
    while any(task.poll() is None for task in tasks):
        time.sleep(0.05)
        if killed is None and any(task.returncode for task in tasks):
            if options.kill_on_bad_exit == "1":
                signal_all(tasks, signal.SIGTERM)
            killed = time.monotonic() + KILL_WAIT
        if killed is not None and time.monotonic() > killed:
            print("A task did not end.", file=sys.stderr)
            signal_all(tasks, signal.SIGKILL)
    for path in folder.glob("task-*"):
        path.unlink()
    codes = [task.returncode for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


def signal_all(tasks, number):
    for task in tasks:
        if task.poll() is None:
            send(task.pid, number)


def scontrol(arguments):
    """Queue a job again; return 1 where that is not allowed."""
    command, job = arguments
    folder = Path(os.environ["STAND_IN"])
    if command != "requeue" or job != os.environ["SLURM_JOB_ID"]:
        sys.exit(f"scontrol {command} {job} is not understood.")
    if (folder / "requeues").read_text() != "yes":
        return 1
    (folder / "requeue").touch()
    return 0


if __name__ == "__main__":
    program = {"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[sys.argv[1]]
    sys.exit(program(sys.argv[2:]))
