"""Random weights of a whole model on one tensor-parallel rank, at real sizes or as a toy."""


class ModelWeights:
    """All layers' weights, embedding, final norm and this rank's share of the head. Made by random()."""

    @classmethod
    def random(
        cls,
        name: str,
        *,
        rank: int = 0,
        tp: int = 1,
        precision: str = "fp8",
        device=None,
        seed: int = 0,
        toy: bool = False,
        layers: int | None = None,
    ) -> "ModelWeights":
        """Draw random weights; each layer has memory of its own.

        name: in the model table. precision: of projections and experts, "fp8" or "bf16"; embedding, norms, router and
        head are bf16. toy: a small model of the same structure, of which the ranks hold slices of the same weights, so
        that tp = 2 computes what tp = 1 does. layers: only the first so many.
        """
        raise NotImplementedError
