"""Sizes of the small model: three GDN layers and one attention layer, as Qwen3.5 has them in turn."""

from dataclasses import asdict, dataclass

from ..models import GDNShape
from .vocabulary import WORDS


@dataclass(frozen=True)
class Sizes:
    """Sizes in elements. Every fourth layer is attention, over a window of tokens.

    The window is what sets this model apart from Qwen3.5, whose attention layers see every token: here what lies
    further back than `window` is known through the recurrent states alone, so an answer shows what they still hold.
    """

    hidden: int = 256
    layers: int = 4
    num_k_heads: int = 2
    num_v_heads: int = 4
    head_dim: int = 128  # of GDN: K and V
    attn_heads: int = 4
    attn_kv_heads: int = 2
    attn_dim: int = 64
    window: int = 64
    ffn: int = 512
    vocab: int = len(WORDS)

    @property
    def gdn(self) -> GDNShape:
        """Heads of a GDN layer."""
        return GDNShape(self.num_k_heads, self.num_v_heads, self.head_dim, self.head_dim)

    def is_attention(self, layer: int) -> bool:
        """Whether layer number `layer`, from 0, is attention."""
        return layer % 4 == 3

    @property
    def gdn_layers(self) -> list[int]:
        """Numbers of the GDN layers."""
        return [layer for layer in range(self.layers) if not self.is_attention(layer)]

    def as_dict(self) -> dict[str, int]:
        return asdict(self)
