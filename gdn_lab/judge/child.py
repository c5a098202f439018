"""The process that a kernel is judged in: python -m gdn_lab.judge.child '<request as JSON>'.

Messages, a JSON object a line, go to the file descriptor of the request; what a kernel prints goes to stderr.
"""

import json
import os
import sys


def main(words: list[str]) -> int:
    """Judge what the request names. See apart.py for requests and messages."""
    request = json.loads(words[0])
    messages = os.fdopen(os.dup(request["fd"]), "w", encoding="utf-8", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout.reconfigure(line_buffering=True)  # the process may be killed at any moment
    device = _prepare(request)
    from . import judging  # all that judges is imported before a stranger's file is executed
    from .answers import answer

    def send(**message) -> None:
        messages.write(json.dumps(message) + "\n")

    send(device=judging.device_name(device))
    answer(request, device, send)
    send(done=True)
    return 0


def _prepare(request: dict):
    """Choose the device; without a GPU Triton's kernels run in its interpreter."""
    import torch

    if torch.cuda.is_available():
        torch.set_num_threads(request.get("threads") or torch.get_num_threads())
        return torch.device("cuda", torch.cuda.current_device())
    torch.set_num_threads(1)  # tensors are small: threads would wait for each other
    os.environ["TRITON_INTERPRET"] = "1"
    return torch.device("cpu")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
