"""What was predicted before it was measured, and what was tried: notes of the study, each with its numbers.

A prediction is the time of a step over FlashInfer's in place on the same GPU, averaged over whole periods of the ring.
"""

from typing import NamedTuple


class Prediction(NamedTuple):
    """Of bf16 states, or of FP8. heads: value heads on the GPU; its key heads are a quarter of that.

    three_launches, one_launch: which design, each written down before its kernels had run on a GPU; None: not built.
    """

    updates: int
    heads: int
    batch: int
    three_launches: float
    one_launch: float | None
    dtype: str = "bfloat16"


# Three launches, of an H100: a first probe reads the state at 83% of the read bandwidth (420 µs of FlashInfer's 758 at
# B = 512, without any write), a full ring costs its row one more read and write in C + 1 steps, and three kernels with
# PDL take 3 µs more than one.
# One launch, of an H200: the bytes take 0.53 of FlashInfer's time at the measured bandwidth. 95% of that bandwidth is
# reached, as in place, and what does not grow with the batch falls from 16 µs to 6: no kernel waits for another, and
# 2,500 instructions for each head are a fifth of what the schedulers issue in the time that the head's bytes take.
# FP8, three launches, of an H100: reading 20 KB for each head takes 0.28 of FlashInfer's time at the read bandwidth.
# The launch that prepares and the one that writes add 0.02 to 0.03 each where they do not overlap. 220 instructions for
# 64 rows are half of what the schedulers issue in that time; at B = 32 three launches cost 8 µs.
PREDICTIONS = (
    Prediction(16, 64, 512, 0.58, 0.56),
    Prediction(16, 64, 256, 0.58, 0.57),
    Prediction(16, 64, 128, 0.59, 0.58),
    Prediction(16, 64, 32, 0.66, 0.68),
    Prediction(32, 64, 512, 0.59, 0.57),
    Prediction(16, 8, 512, 0.60, 0.60),
    Prediction(16, 8, 256, 0.66, 0.68),
    Prediction(16, 64, 512, 0.36, None, "float8_e4m3fn"),
    Prediction(16, 64, 256, 0.36, None, "float8_e4m3fn"),
    Prediction(16, 64, 128, 0.37, None, "float8_e4m3fn"),
    Prediction(16, 64, 32, 0.52, None, "float8_e4m3fn"),
)

# What came before, in the order in which it was tried. Times: B = 512 and 64 value heads unless it says otherwise.
TRIED = (
    "Everything in one program on the CUDA cores, the ring's dot products again for each tile: 804 µs on an H200, "
    "where FlashInfer takes 577.",
    "The same with k and q in two bf16 terms on the tensor cores: 539 µs.",
    "Dot products and norms once for each key head in a small kernel before: 299 µs, without any write of the state.",
    "The write of a full ring as a branch of that kernel: 521 µs. Its registers cost every program, so it has a launch "
    "of its own.",
    "A launch with a program for every tile of every row, of which most find nothing to do: 41 µs for 65,536 programs. "
    "The kernel that writes has few programs, which look for full rings themselves.",
    "A bf16 state in three bf16 terms of k and q on the tensor cores: 357 µs, behind the CUDA cores.",
    "An FP8 state read by the tensor cores without conversion, without any write: 223 µs; by conversion on the CUDA "
    "cores 323 to 340 µs.",
    "A cumulative log decay for each update, as first planned, loses what follows one strong decay: the ring keeps "
    "single log decays and adds up those since.",
    "The normalised key, as first planned, would be rounded to 16 bits: the ring keeps k as it came, and u is divided "
    "by its norm.",
    "The first whole version, a program for each 32 rows of a state and no pipelining, on an H100: 529 µs, 0.70 of the "
    "760 µs recorded for FlashInfer; 140 µs at B = 128, 45 µs at B = 32, and with 8 value heads 47 µs at B = 256. The "
    "kernel that prepares takes about 22 of the 529 µs, the one that writes 90, twice what its bytes take. Programs of "
    "64 rows spill registers (618 µs), and with a limit of 128 registers the same program takes 666 µs.",
    "After it each program goes through the tiles of a head in a pipelined loop, rows with a full ring are listed once "
    "instead of by every program, and gates of a group are computed together. Recorded on an H200 alone: 395 µs with a "
    "ring of 16 and 386 µs with one of 32; 38 µs at B = 32. At B = 512 the bytes take 296 µs at that GPU's bandwidth.",
    "Where those 395 µs go: 16 µs are the same for every batch, because each of three kernels waits for the one before "
    "it, and 0.74 µs come with each row, where its bytes take 0.58. A program that sums the state over K on the CUDA "
    "cores shuffles 64 times for 16 rows, one a clock on a multiprocessor: 1,024 clocks for a head, and 512 more for "
    "the ring, of the 2,000 that the head's bytes take. The kernel for the products k_j . k takes 14 to 22 µs.",
    "So all of it is one launch: k and q are bf16 as they come, their norms are factors of the result, and one bf16 "
    "product with each is exact, where three terms of a normalised k took 357 µs. The write of a full ring is a branch "
    "of the same program, 32 columns at a time.",
    "Its first run, on an H200: 350 µs at B = 512, 187 at 256, 102 at 128, 35 at 32 (0.61, 0.64, 0.70 and 0.86 of "
    "FlashInfer). A step that writes nothing takes 279 µs with empty rings and 326 with 15 updates pending; one that "
    "writes every row takes 968, of which the bytes explain 560. A program that writes waits for memory four times for "
    "each 16 rows, 50 µs in all, and at B = 32 every step waits for it. One warp for a head spends 850 instructions "
    "before its loop, so that four programs for a head are bound by instructions.",
    "Two ways out, predicted at 0.56, 0.57, 0.64 and 0.72 for those batches: the branch loads halves of 16 rows at "
    "once; or the write has a launch of its own again, which fills the tail of the first and whose rows the first "
    "lists, so that the first needs 96 registers instead of 168. Measured with the branch: 0.59, 0.61, 0.64 and 0.72; "
    "with 8 value heads 0.75 at B = 256 and 0.70 at 512. With the launch of its own: 0.66, 0.67, 0.70 and 0.77; it "
    "writes every row in 1,716 µs, the branch in 780.",
    "Asking for the state before its loop costs: 349 µs with half of it brought into the L2 at the start, 340 "
    "without, at B = 512. Asking for the ring's u as well gains: 337; without the state it was not tried. Keys before "
    "the slot's span is known: no gain. One head in two programs: 390; in four: 555. A limit of 128 registers, which "
    "spills in the branch: 395. A ring of 32: 371.",
    "What was launched then, on that H200, as the mean of whole periods, interleaved with FlashInfer in one process: "
    "340 µs at B = 512 (0.59), 176 at 256 (0.61), 95 at 128 (0.64), 29 at 32 (0.72), 10.2 at 8 (0.85); with 8 value "
    "heads 30.6 at B = 256 (0.75) and 54.4 at 512 (0.70). The worst single step of a period is 1.08 of the mean at B "
    "= 128. With 256 heads, B = 32 and 8 value heads, the kernels in place are faster: 6.0 against 8.6 µs. Still "
    "open: a step without a write takes 289 to 329 µs at B = 512, where its bytes take 240 to 280 at the read "
    "bandwidth of 4.55 TB/s; two warps with 64 rows hold 249 registers for the branch, with four pieces of the "
    "columns instead of two 178.",
    "A program that writes takes the columns in parts, whose registers decide how many programs run at once. "
    "Predicted 0.585 at B = 512 with eight parts, 117 registers a thread. Measured there with two, four and eight "
    "parts: 351, 337 and 732 µs with one warp and 16 rows (0.61, 0.59, 1.27), 381, 342 and 473 µs with two warps and "
    "64 rows. Eight parts write 32 bytes of a row at a time, less than the memory's 64. Four are kept where one warp "
    "takes a head. Of 2,048 heads (8 value heads at B = 256), which two warps take and where one program that writes "
    "holds up the step, 0.71 instead of 0.751 was predicted; measured with four parts 32.5 µs, 0.787 of FlashInfer's "
    "41.2, where another process had 30.6 and 0.751 with two: two are kept. There with four parts: three stages 0.82, "
    "four warps 0.88, 32 rows 0.83, 16 rows 0.92, 16 rows and one warp 0.97.",
    "Programs that ask for their head before the wait for the kernel ahead, the first 2,112 of them: 346 instead of "
    "342 µs at B = 512; not timed at smaller batches, and removed.",
    "Of 2,048 heads in two warps, four programs fit a multiprocessor, and each begins with a chain of loads: index, "
    "span, ring, then its state. A step with empty rings takes 25.9 µs there, where its bytes take 14.7. Predicted for "
    "a program that asks for all of its state (prefetch to the L2) as soon as it knows its slot: 27 µs instead of "
    "30.6, 0.66 of FlashInfer; for one that asks for the state of a program that begins when it ends: the same. "
    "Measured: 33.3 µs for its own state, 36.5 for that of the program 528 later and 36.4 for 1,056, where none takes "
    "30.8 (0.758); in four parts 34.4, with three stages 32.9, 32 rows 37.9, 16 rows and one warp 43.2. At B = 512 "
    "57.3, 64.4 and 70.5 instead of 54.6 (0.702). A chain of loads is not what limits, or what is asked for takes the "
    "place of what is read: removed.",
    "In four parts a step of 8,192 heads (64 value heads at B = 128) was recorded at 100 µs, 0.68 of FlashInfer, where "
    "0.625 was predicted and two parts had taken 95, 0.64, in an earlier process. Below 16,384 heads two are back.",
    "A writer holds up the step most where it begins last. Spans change while a step runs, so rows can change places "
    "by them only in groups whose spans move on once all programs of the group have read them. Predicted for groups "
    "of 8 rows, B / 8 apart, those with a full ring first: 29.3 instead of 30.8 µs with 8 value heads at B = 256. "
    "Measured in one process: 31.8 without, 29.7 in groups of 4, 29.8 in groups of 8, 30.4 in groups of 32. With 64 "
    "value heads, one warp each: 91.7 instead of 98.2 µs at B = 128, 170 instead of 174 at 256, 330 instead of 326 at "
    "512.",
    "A limit of 128 registers, which four parts keep without spilling, lets all 2,048 heads of one warp run at once: "
    "predicted 27 µs, measured 40.0 where two warps took 30.8. A program of one warp that writes goes through 32 "
    "pieces one after the other, and the step is as long as that. With many heads the limit gains: 16 programs on a "
    "multiprocessor instead of 13 with two stages instead of three, 322 instead of 333 µs at B = 512, 171 instead of "
    "177 at 256.",
    "With full rings first four parts gain where two warps take a head, too, since more programs run: 28.1 µs at 8 "
    "value heads and B = 256 (0.70 of FlashInfer) with a limit of 168 registers, 49.9 at B = 512 (0.65), where two "
    "parts take 29.8 and 53.8. Beside it 32 rows 29.2 and 50.7, one stage 30.4 and 56.1, 128 rows in four warps 31.8 "
    "and 57.2. For one warp, 64 value heads, B = 128, 256 and 512: 16 rows in four parts, two stages and 128 "
    "registers 0.625, 0.590, 0.577; without the limit 0.630, 0.609, 0.600; one stage 0.677, 0.650, 0.644; in two "
    "parts 0.719, 0.704, 0.701. Hints that the state leaves the L2 first or last change nothing.",
    "The count of a group's arrivals, awaited at the end instead of at once: predicted 1 µs less for each program, "
    "measured 1 to 4% more at every batch, since what a program must remember until then spills. The limits, chosen "
    "with a ring of 16, cost a ring of 32 a quarter of its time (457 instead of 371 µs at B = 512): a longer ring has "
    "none.",
    "On Hopper a warp's FP8 product, as in that first FP8 probe, is compiled to a conversion to fp16 (256 instructions "
    "for 128 rows) and an fp16 product. Products of four warps with 16 columns read e4m3 from shared memory as it is. "
    "Two e4m3 terms are exact for k and q of bf16, where the probe took four, because they are split before they are "
    "normalised; the ring's weights stand in the same 16 columns, so that one pass of shuffles sums both.",
    "The first whole FP8 version, on an H200: 311 µs, 0.54 of FlashInfer's time in the same process; 157 at B = 256, "
    "80 at B = 128. Reading takes 178 of the 311 µs and preparing 13, both together 0.33; the launch that writes "
    "takes 120. It has 31 instructions for each element, of which stochastic rounding is 14 and S k and S q are 2, and "
    "64 registers for k and q leave 12 warps on a multiprocessor. Tiles of 128 rows with two stages read 19 µs faster.",
    "The second FP8 version, predicted 0.39 on an H200 at B = 512, 0.40 at 256, 0.42 at 128 and 0.58 at 32: a step "
    "that fills the ring reads its state twice, once in C steps, so that what writes needs no k and q; the random "
    "bits are added in place, 6 instructions for each element; the dot products of the ring's keys are on the tensor "
    "cores. Measured: 0.40, 0.43, 0.47 and 0.65. Of 228 µs at B = 512 reading takes 168 (0.29 of FlashInfer), "
    "preparing 15 and writing 45, of which its bytes explain 16; at B = 32 reading takes 15 of 26. A ring of 32 is "
    "read more than it saves writes: 277 µs.",
    "Its tiles at B = 512, 256, 128 and 32, over FlashInfer: a write of 16 rows, each head in two parts, 0.396, "
    "0.425, 0.468, 0.708; in four parts 0.405, 0.428, 0.467, 0.647; undivided 0.397, 0.427, 0.488, 0.850; 64 rows in "
    "four warps, one stage, 0.399, 0.424, 0.466, 0.663; 32 rows 0.415 to 0.472 at B = 512; no tile with ten or more "
    "programs on a multiprocessor or with two stages of 64 rows is faster. Reading in tiles of 64 rows: 0.432 "
    "instead of 0.397. Two heads and one stage instead of four heads and two: 0.392 instead of 0.397, in two "
    "processes; one head and one stage 0.404, and at B = 32, with an undivided write, 0.806 instead of 0.850. Asking "
    "for 256 rows ahead: 0.408; for none: 0.400. The must of 0.45 is met from B = 256 up, the aim of 0.33 is not: "
    "without any write it is 0.32.",
)
