"""Several machines, each with an agent of torchrun's: here two agents on one, which meet over TCP as two would."""

import socket
import subprocess
import sys

import pytest
from helpers.training import environment, told, train_in_group

# What torchrun runs for its arguments; the process that trains is a fork of the agent, which has imported torch.
AGENT = """
import sys
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from helpers.training import train_in_group
config = LaunchConfig(
    min_nodes=2, max_nodes=2, nproc_per_node=1, run_id="a-run", rdzv_backend="c10d", rdzv_endpoint=sys.argv[1],
    local_addr="127.0.0.1", start_method="fork", max_restarts=0,
)
elastic_launch(config, train_in_group)(sys.argv[2], int(sys.argv[3]))
"""


@pytest.fixture
def agents():
    """Starts an agent for each of two machines and gives their exit codes, with what they wrote to standard error."""

    def run(folder, die_after=0):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-c", AGENT, endpoint, str(folder), str(die_after)]
        options = {
            "env": environment(GLOO_SOCKET_IFNAME="lo"),
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        processes = [subprocess.Popen(command, **options) for _ in range(2)]
        try:
            errors = [process.communicate(timeout=240)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [process.returncode for process in processes], "\n".join(errors)

    return run


def test_two_machines_reach_the_loss_of_one_and_go_on_after_both_died(agents, tmp_path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    alone.mkdir()
    together.mkdir()
    train_in_group(alone)
    codes, errors = agents(together, die_after=2)
    assert all(codes), errors
    assert told(together) == []
    codes, errors = agents(together)
    assert codes == [0, 0], errors
    (expected,) = told(alone)
    first, second = told(together)
    assert (expected["world"], first["world"], second["world"]) == (1, 2, 2)
    assert {first["group"], second["group"]} == {0, 1}
    # Half of the epochs were done when they died.
    assert first["steps"] == second["steps"] == expected["steps"] / 2
    assert first["results"] == second["results"]
    for ours, theirs in zip(first["results"], expected["results"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
