"""One study, several processes, a PostgreSQL server: `steepest tune` where one machine is not enough.

Starts a server of its own in a temporary folder (Debian's package postgresql has it; a URL as argument
takes a server that runs) and three processes at one study, of which it kills one in the middle of a trial:
the others find that out by its missing heartbeat and run the trial again. On several machines the same
command runs on each. Needs `apt-get install postgresql` and `pip install "steepest[tune]" "psycopg[binary]"`.

    $ python examples/tune_on_postgresql.py
    killed trial 1 of process 1 after 2 epochs
    24 trials complete or pruned, 1 killed and run again; by process: 12, 0, 12
    best validation loss 0.0239
"""

import argparse
import glob
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

import optuna

parser = argparse.ArgumentParser(description="One study, several processes, a PostgreSQL server.")
parser.add_argument("url", nargs="?", help="postgresql+psycopg://USER:PASSWORD@HOST/DATABASE (default: a new server)")
parser.add_argument("--quick", action="store_true", help="fewer trials")
args = parser.parse_args()
trials = 6 if args.quick else 24


@contextmanager
def server() -> Iterator[str]:
    """A server on a free port of this machine, gone with all its data at the end; its URL."""
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin")) or [os.path.dirname(shutil.which("initdb") or "")]
    if not programs[-1]:
        sys.exit("no PostgreSQL here: apt-get install postgresql")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp()
    user = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    if user:
        shutil.chown(folder, user)

    def run(program: str, *options: str) -> None:
        command = [f"{programs[-1]}/{program}", "-D", f"{folder}/data", *options]
        subprocess.run(command, check=True, user=user, cwd=folder, stdout=subprocess.DEVNULL)

    run("initdb", "-U", "study", "-A", "trust")
    run("pg_ctl", "start", "-w", "-l", f"{folder}/log", "-o", f"-p {port} -c listen_addresses=127.0.0.1 -k {folder}")
    try:
        yield f"postgresql+psycopg://study@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "stop", "-m", "immediate")
        shutil.rmtree(folder)


def main(url: str) -> None:
    """The search."""
    command = [sys.executable, "-m", "steepest", "tune", "--storage", url, "--heartbeat", "1", "--hidden", "64"]
    command += ["--trials", str(trials), "--epochs", "100", "--early-stopping", "100"]
    storage = optuna.storages.RDBStorage(url)  # makes the tables, which several processes at once would all do
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    killed = None
    while killed is None:
        time.sleep(0.05)
        running = [trial for trial in recorded(storage) if trial.state.name == "RUNNING" and trial.intermediate_values]
        killed = next((trial for trial in running if trial.user_attrs.get("pid") == processes[1].pid), None)
    processes[1].kill()
    print(f"killed trial {killed.number} of process 1 after {len(killed.intermediate_values)} epochs")
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, -9, 0]

    ended = recorded(storage)
    whole = [trial for trial in ended if trial.state.name in ("COMPLETE", "PRUNED")]
    failed = [trial.number for trial in ended if trial.state.name == "FAIL"]
    again = [trial.number for trial in whole if trial.params == killed.params]
    by = ", ".join(str(output.count(f"/{trials}  ")) for output in outputs)
    print(f"{len(whole)} trials complete or pruned, {len(failed)} killed and run again; by process: {by}")
    print(f"best validation loss {min(trial.value for trial in whole if trial.state.name == 'COMPLETE'):.4f}")
    assert failed == [killed.number] and len(again) >= 1 and trials <= len(whole) <= trials + 2
    storage.engine.dispose()


def recorded(storage: optuna.storages.RDBStorage) -> list[optuna.trial.FrozenTrial]:
    """The study's trials so far."""
    try:
        return optuna.load_study(study_name="steepest", storage=storage).get_trials()
    except KeyError:  # no process has made it yet
        return []


optuna.logging.set_verbosity(optuna.logging.WARNING)
if args.url:
    main(args.url)
else:
    with server() as url:
        main(url)
