"""Notes on the kernels in place and the step around them: what was predicted for each change, and what was measured.

One process on one H200 for each table, on 2026-11-28, variants interleaved and right before they were timed. Times are
µs of CUDA-graph replay over distinct slots.
"""

from typing import NamedTuple


class Tried(NamedTuple):
    """A change, its predicted and its measured effect, and what became of it."""

    change: str
    predicted: str
    measured: str
    verdict: str


# H200, 4,242 GB/s in place, B = 512, 64 value heads: cutedsl 537.9, triton/vk 540.1, FlashInfer 570.0 before.
ROOF = (
    Tried(
        "More bytes in flight: bulk copies of a whole head, 32 KB a warp",
        "97 to 98% of the roof",
        "545.6: 1.4% slower than cutedsl; of a quarter of a head 536.6",
        "Bytes in flight are not what limits: 64 KB on a multiprocessor are enough.",
    ),
    Tried(
        "A program for a whole head, its tiles pipelined through shared memory",
        "97%",
        "541.6 with 16 rows and four stages, 550.6 with three, 551.6 with 8 rows and six",
        "No: many programs that each go through their own 32 KB are slower than tiles in the order of addresses.",
    ),
    Tried(
        "Loads and stores that leave the L2 first (evict_first)",
        "+0.5 to 1 point",
        "554.0 for both, 557.7 for stores alone",
        "No.",
    ),
    Tried("Streaming stores (st.cs), loads past the L1", "nothing", "559.5, in Triton stores alone 547.9", "No."),
    Tried(
        "A limit of 128 registers for a tile of 16 rows in three stages",
        "more programs an SM",
        "659.0: it spills",
        "No.",
    ),
    Tried("64 rows in two warps", "", "656.6", "No."),
    Tried(
        "triton/vk in tiles of 16 rows instead of 32, one warp each",
        "",
        "531.1, 96.5% of the roof; 267.7 at B = 256, 95.7%; 135.4 at B = 128, 94.6%; in the process before 531.2, "
        "and at B = 256 267.8 instead of 272.6",
        "Kept for H200.",
    ),
    Tried(
        "The first programs ask for their rows (prefetch to the L2) before the wait for the kernel ahead",
        "at B = 256 96.3 instead of 95.7% of the roof, at 512 96.8 instead of 96.5",
        "537.0 with 1,056 programs, 538.7 with 2,112 and 539.0 with 4,224, where none that ask take 537.4",
        "No, and removed. The times at B = 128, 256 and 512 are 1.03 µs a row, 97.3% of the roof, and 4.2 µs for "
        "each launch, and these 4.2 µs are not the first loads' way to the memory.",
    ),
    Tried(
        "The kernel as it was at slots one after the other instead of random ones, B = 256 here and below",
        "nothing: a slot is 2 MB in one piece",
        "257.8 µs, 99.4% of the roof, instead of 266.8, 96.0; the same random slots sorted 265.6. A kernel that only "
        "negates each element: 257.6 and 263.7",
        "This is the limit: the roof is that of one piece of memory, and random slots cost any kernel 2 to 3%.",
    ),
    Tried(
        "Loads of the state with evict_last",
        "−1 point",
        "260.4, 98.4% of the roof, where loads that leave it first take 270.5; stores that leave it last 265.5",
        "Kept for H200 from 16,384 heads up, in cutedsl/vk too. As they are now, in two later processes: triton/vk "
        "261.2 and 260.4 (98.2%), at B = 512 518.8 (98.6%); cutedsl/vk 261.6 and 261.2 (97.8%), 519.5 (98.5%); at "
        "slots one after the other 255.2, all of the roof. Work on 24 MB after the step takes no longer than before.",
    ),
    Tried(
        "S k and S q on the tensor cores in triton/vk: 744 instructions, not 920, and 21 programs an SM, not 16",
        "97.2% of the roof at B = 512, 96.5 at 256",
        "267.8, 95.7%",
        "No: instructions are not what limits.",
    ),
    Tried(
        "The same in the CuTe DSL without any shuffle for sums: 600 instructions, 21 warps an SM; with a bulk copy in "
        "and one out, 25",
        "97 and 98%",
        "285.1 (89.9%): its lanes read pieces of 64 bytes; with bulk copies 267.4, and with the state prefetched "
        "before the wait 265.6 (96.5%), 32 rows a warp 276.5; cutedsl/vk takes 271.3",
        "No: at the same 96% whatever fetches the state.",
    ),
    Tried(
        "Persistent programs, which take every n-th tile in the order of addresses in a pipeline",
        "96%",
        "277.7, on the tensor cores 377",
        "No.",
    ),
    Tried(
        "Each program asks for the tile that is 2,112 programs ahead (prefetch to the L2)",
        "−0.5 points",
        "272.5",
        "No.",
    ),
    Tried("Programs in the order of rows first, so that all slots are read at once", "−10 points", "278.5", "No."),
    Tried(
        "launch_dependents issued before or right after the wait for the kernel ahead",
        "",
        "274.3 and 274.4; without PDL 273.3",
        "No.",
    ),
)

# H200, 64 value heads; over FlashInfer's time.
SMALL = (
    Tried(
        "A launch that does nothing, with PDL",
        "1.2 µs",
        "0.4 of one block, 0.5 of 132, 0.9 of 512; 2.9 of 2,048 blocks of a warp, and 1.7 without PDL",
        "Each block costs about 1.3 ns with PDL, half of it without: few blocks of four or more warps.",
    ),
    Tried(
        "The state prefetched to the L2 before the wait for the kernel ahead",
        "B = 1: 2.9 to 2.3 µs",
        "B = 1: 0.92 to 0.70 of FlashInfer with launch_dependents right after the wait; B = 4: 0.785 to 0.763",
        "Kept up to 256 heads (B = 4). As cutedsl/vk in a later process 0.740, 0.747 and 0.796 at B = 1, 2 and 4.",
    ),
    Tried(
        "launch_dependents issued before the wait",
        "half of the gain",
        "0.995 at B = 1, 0.71 at B = 2, 0.77 at B = 4",
        "No: waiting programs of later launches take the room of the one that works.",
    ),
    Tried(
        "All of the batch in one wave at B = 8: bulk copies of 32 rows a warp",
        "",
        "9.95 µs, 0.83 of FlashInfer, where 16 rows in two waves take 10.5; as cutedsl/vk 9.86, 0.82",
        "Kept for 257 to 528 heads.",
    ),
)

# A layer's step of the 397B model at TP 8; H200, best 311.0 of before-32's 337.6 at B = 256 before.
STEP = (
    Tried(
        "One kernel for in_proj ba, convolution, gates, GDN and gated norm: a program for each head and row",
        "−9 µs at B = 256, −6 at B = 1",
        "+44 at B = 256, −0.7 at B = 16, −1.0 at B = 1 (of 42.1)",
        "No: a program has some 50 barriers for sums over its head, and two programs fit an SM. Without these parts "
        "the step is 12.8 µs shorter at B = 256 and 6.5 at B = 1: more than that no such kernel can gain.",
    ),
    Tried(
        "in_proj ba on a second branch of the graph",
        "−4 at B = 256",
        "−2.8, −1.8 at B = 16, −3.2 at B = 1",
        "One launch with the convolution came instead, predicted to gain 5. With it best takes 301.4 of before-32's "
        "334.9 µs at B = 256 (−10.0%), in another process 302.8 of 343.1 (−11.7%). There it shared its scratch "
        "with in_proj qkvz, which runs beside it; no longer since. Without both parts the step is 11.0 µs shorter.",
    ),
    Tried(
        "The router's product in Triton, its weights prefetched before the wait",
        "−3",
        "−3.4, in tiles of 128 −4.1",
        "Kept for weights of up to 2 million elements.",
    ),
    Tried(
        "in_proj qkvz in Triton", "−1", "+2.3 with the best of five tilings", "No: torch's product stays at B = 256."
    ),
    Tried(
        "Experts: K of gate and up split in two, for a shorter last wave",
        "−4",
        "+7.7; −2.7 at B = 16, +0.5 at B = 1",
        "No.",
    ),
    Tried("Experts: other depths and tiles of gate and up", "within 1%", "+7 to +12", "No."),
    Tried("Experts: down in programs of 4, 16 or 32 tiles instead of 8", "within 1%", "+0.8, −1.5, +3.3", "Left at 8."),
    Tried(
        "Experts: their rows stored with evict_last",
        "−6 with the sum over experts",
        "−2.4; −0.9 in a second variant, which also reads them evict_first",
        "The first is kept.",
    ),
    Tried(
        "The router's choice with one maximum for logit and expert instead of two",
        "−1",
        "not timed",
        "Kept: it has half the instructions.",
    ),
)
