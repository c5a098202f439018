"""Jobs that take milliseconds: a shell writes their rows. For tests of the scheduler, the agent and the driver."""

from gdn_lab.cluster.job import FOLDER, Job

TYPE = "made-up"


def toy(number: int, *, seconds: float = 0.0, script: str = "", rows: int = 2, **options) -> Job:
    """A job that writes `rows` rows, half of them before it sleeps `seconds` and runs `script`."""
    line = f"""printf '{{"status": "fact", "phase": "toy", "number": {number}, "row": %d}}\\n' """
    begin = "; ".join(f"{line} {row} >> {FOLDER}/rows.jsonl" for row in range(rows // 2)) or ":"
    finish = "; ".join(f"{line} {row} >> {FOLDER}/rows.jsonl" for row in range(rows // 2, rows)) or ":"
    sleep = f"sleep {seconds}; " if seconds else ""
    command = ("sh", "-c", f"{begin}; {sleep}{script or ':'}; {finish}")
    given = {"study": "toy", "parameters": {"number": str(number)}, "commit": "c0ffee", "gpu": TYPE} | options
    return Job(command=command, **({"seconds": seconds} | given))
