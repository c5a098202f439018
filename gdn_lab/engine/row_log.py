"""Write the rows of a serving run while it runs, without making its steps wait for the disk."""

import queue
import threading

STEP_FIELDS = ("index", "kind", "batch", "padded", "tokens", "host_us", "gpu_us", "start_s", "end_s")
REQUEST_FIELDS = (
    "id",
    "input_tokens",
    "output_tokens",
    "arrival_s",
    "admitted_s",
    "first_token_s",
    "finished_s",
    "outcome",
    "reason",
)
FIELDS = {"step": ("steps", STEP_FIELDS), "request": ("requests", REQUEST_FIELDS)}
PERIOD_S = 0.25


class RowLog:
    """serve()'s on_row: a thread writes what has come as columns, in rows of type "steps" and "requests".

    append(row): such as a Run's. common: fields of every row. A context manager: at its end, however it ends, all rows
    are written; an error of append() is raised there.
    """

    def __init__(self, append, common: dict, period_s: float = PERIOD_S):
        self._append, self._common, self._period_s = append, common, period_s
        self._rows, self._closing, self._error = queue.SimpleQueue(), threading.Event(), None
        self._thread = threading.Thread(target=self._write, name="rows", daemon=True)

    def __call__(self, row: dict) -> None:
        self._rows.put(row)

    def __enter__(self) -> "RowLog":
        self._thread.start()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._closing.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _write(self) -> None:
        try:
            while not self._closing.wait(self._period_s):
                self._flush()
            self._flush()
        except Exception as error:  # raised where the run ends: this thread has nobody to tell
            self._error = error

    def _flush(self) -> None:
        rows = [self._rows.get() for _ in range(self._rows.qsize())]
        for kind, (name, fields) in FIELDS.items():
            own = [row for row in rows if row["type"] == kind]
            if own:
                columns = {field: [row.get(field) for row in own] for field in fields}
                self._append({"status": "fact"} | self._common | {"type": name} | columns)
