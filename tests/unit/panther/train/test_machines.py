"""Several machines, each with an agent of torchrun's: here two agents on one, which meet over TCP as two would."""

import json
import socket
import subprocess
import sys
import textwrap

import pytest
from helpers.training import environment

SCRIPT = """
    import json, os, sys, torch
    from helpers.training import batches, network
    from panther.train import fit, process_group

    torch.set_num_threads(1)
    with process_group() as rank:
        model = network(rank)  # the first one's weights count
        model[2].p = 0.0

        def on_epoch(result):
            # The whole job dies, as when a machine is lost, until it is started again.
            if result.epoch == 2 and sys.argv[2] == "die":
                os._exit(9)

        steps = []

        def count(x):
            steps.append(len(x))
            return x

        results = fit(
            model, batches(seed=rank), epochs=4, lr=0.02, checkpoints=sys.argv[1], on_epoch=on_epoch, augment=count,
        )
        told = {"losses": [r.loss for r in results], "world": int(os.environ.get("WORLD_SIZE", 1))}
        told["steps"] = len(steps)
        told["group"] = int(os.environ.get("GROUP_RANK", 0))
        with open(f"{sys.argv[1]}/results-{rank}.json", "w") as file:
            json.dump(told, file)
"""


@pytest.fixture
def agents(tmp_path):
    """Starts an agent for each machine and gives their exit codes, with what they wrote to the standard error."""

    def run(machines, folder, what="live"):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", str(machines), "--nproc-per-node", "1"]
        torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "a-run"]
        torchrun += ["--local-addr", "127.0.0.1", "--no-python"]
        start = torchrun if machines > 1 else []
        command = [*start, sys.executable, "-c", textwrap.dedent(SCRIPT), str(folder), what]
        options = {
            "env": environment(GLOO_SOCKET_IFNAME="lo"),
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        processes = [subprocess.Popen(command, **options) for _ in range(machines)]
        try:
            errors = [process.communicate(timeout=120)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [process.returncode for process in processes], "\n".join(errors)

    return run


def told(folder):
    return [json.loads(path.read_text()) for path in sorted(folder.glob("results-*.json"))]


def test_two_machines_reach_the_loss_of_one_and_go_on_after_both_died(agents, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    codes, errors = agents(1, alone)
    assert codes == [0], errors
    codes, errors = agents(2, together, "die")
    assert all(codes), errors
    assert told(together) == []
    codes, errors = agents(2, together)
    assert codes == [0, 0], errors
    (expected,) = told(alone)
    first, second = told(together)
    assert (expected["world"], first["world"], second["world"]) == (1, 2, 2)
    assert {first["group"], second["group"]} == {0, 1}
    # Half of the epochs were done when they died.
    assert first["steps"] == second["steps"] == expected["steps"] / 2
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(expected["losses"], rel=1e-3)
