"""The pull request's accuracy and end-to-end figures: tables, and what they say."""

import pandas

from ...report.recorded import published


def end_to_end_table() -> pandas.DataFrame:
    """Throughput and time per token of the whole server, with Triton's and with FlashInfer's decode kernel."""
    table = published("end_to_end").rename(columns={"change_percent": "change, %"})
    return table[["metric", "unit", "triton", "flashinfer", "change, %"]]


def accuracy_table() -> pandas.DataFrame:
    """A line for each evaluation, stage and backend: runs, mean, least and greatest score, and notes."""
    lines = []
    for (evaluation, stage, backend), rows in published("accuracy").groupby(
        ["evaluation", "stage", "backend"], sort=False
    ):
        questions = [f"{count:.0f} questions" for count in rows.questions.dropna().unique()]
        lines.append(
            {
                "evaluation": evaluation,
                "stage": stage,
                "backend": backend,
                "runs": len(rows),
                "mean": rows.score.mean(),
                "least": rows.score.min(),
                "greatest": rows.score.max(),
                "note": "; ".join([*questions, *rows.note.dropna()]),
            }
        )
    return pandas.DataFrame(lines)


def accuracy_sentences() -> list[str]:
    """The spread of repeated runs, and which difference between backends it leaves."""
    table = published("accuracy")
    gpqa = table[(table.evaluation == "GPQA") & (table.stage == "published")].score
    ci = table[(table.evaluation == "GSM8K") & (table.stage == "ci")].set_index("backend").score
    return [
        f"{len(gpqa)} runs of GPQA with the same backend score {gpqa.min():.3f} to {gpqa.max():.3f}: backends "
        f"whose single runs differ by up to {gpqa.max() - gpqa.min():.3f} cannot be told apart.",
        f"In the CI's GSM8K FlashInfer scores {ci.flashinfer:.3f} and Triton {ci.triton:.3f}: within one standard "
        "error (about 0.01), so neither is shown to be worse.",
        "No score of a float32 state was published, so these figures do not say what a bfloat16 state costs.",
    ]
