"""Notes on the kernels with a ring, in the order in which they were tried: change, prediction, measurement, outcome.

µs of a decode step with 64 value heads and B = 512 on an H200, unless a line says otherwise; "of FlashInfer" is the
time over FlashInfer's in place in the same process. A writer is a program that reads a full ring and writes its state.
"""

from .in_place_notes import Tried

BF16_RING = (
    Tried(
        "All of a step in one program on the CUDA cores; the ring's dot products again for each tile",
        "",
        "804, where FlashInfer takes 577",
        "No.",
    ),
    Tried("The same with k and q as two bf16 terms each on the tensor cores", "", "539", "Kept for the products."),
    Tried(
        "The state itself on the tensor cores, in three bf16 terms of k and q",
        "",
        "357, more than on the CUDA cores",
        "No, until k and q went in as they come (below).",
    ),
    Tried(
        "Dot products and norms in a small kernel before, once for each key head",
        "",
        "299 without any write of the state",
        "Kept in the design of three launches.",
    ),
    Tried(
        "The write of a full ring as a branch of that kernel",
        "",
        "521: the branch's registers cost every program",
        "No: a launch of its own.",
    ),
    Tried(
        "That launch with a program for each tile of each row",
        "",
        "41 for 65,536 programs, most of which find nothing to do",
        "No: few programs look for full rings themselves.",
    ),
    Tried(
        "A cumulative log decay for each update", "", "loses what follows one strong decay", "No: single log decays."
    ),
    Tried("The normalised key in the ring", "", "rounded to 16 bits", "No: k as it comes, u divided by k's norm."),
    Tried(
        "Three launches, a program for 32 rows of a state, no pipelining, on an H100",
        "0.58 of FlashInfer",
        "529, 0.70; 64 rows spill registers (618), with a limit of 128 registers 666",
        "No.",
    ),
    Tried(
        "Three launches, tiles of a head in a pipelined loop, full rings listed once",
        "",
        "395; 38 at B = 32. The bytes take 296. 16 µs do not depend on the batch, since each kernel waits for the one "
        "before it; sums over K take 1,536 clocks of the 2,000 that a head's bytes take",
        "No: replaced by one launch.",
    ),
    Tried(
        "One launch: k and q in bf16 as they come, their norms factors of the result; the write a branch of 32 columns",
        "0.56, 0.57, 0.58 and 0.68 of FlashInfer at B = 512, 256, 128 and 32",
        "350 (0.61), 187 (0.64), 102 (0.70) and 35 (0.86). Without a write 279 to 326; all rows written 968, where the "
        "bytes take 560: a writer waits for memory four times for each 16 rows",
        "Kept, with the changes below.",
    ),
    Tried(
        "The branch loads halves of 16 rows at once",
        "0.56, 0.57, 0.64 and 0.72",
        "0.59, 0.61, 0.64 and 0.72; 8 value heads 0.75 at B = 256, 0.70 at 512",
        "Kept.",
    ),
    Tried("The write in a launch of its own again", "the same", "0.66, 0.67, 0.70 and 0.77", "No."),
    Tried(
        "The state prefetched to the L2 before the loop; the ring's u as well",
        "",
        "349 instead of 340; with u 337",
        "No for the state. u without the state was not tried.",
    ),
    Tried("One head in two programs; in four", "", "390; 555", "No."),
    Tried(
        "A writer takes its columns in two, four or eight parts, which decides its registers",
        "0.585 with eight",
        "0.59, 0.59 and 1.27 in this order with 16 rows a warp: eight parts write 32 B of a row, half of what the "
        "memory takes at once",
        "Four where one warp takes a head.",
    ),
    Tried(
        "The first 2,112 programs ask for their head before the wait for the kernel ahead",
        "",
        "346 instead of 342",
        "No, and removed. Not timed at smaller batches.",
    ),
    Tried(
        "2,048 heads (8 value heads, B = 256) in two warps each: each program asks for its whole state",
        "27 instead of 30.6, 0.66 of FlashInfer",
        "33.3; for the state of a program 528 or 1,056 later 36.5 and 36.4",
        "No: the chain of loads is not what limits.",
    ),
    Tried(
        "Rows with a full ring first, in groups of rows that change places",
        "29.3 instead of 30.8 with 8 value heads at B = 256",
        "29.7 in groups of 4, 29.8 of 8, 30.4 of 32, instead of 31.8; with 64 value heads 91.7 instead of 98.2 at "
        "B = 128, 170 instead of 174 at 256, 330 instead of 326 at 512",
        "Kept: a writer holds up the step most where it begins last.",
    ),
    Tried(
        "A limit of 128 registers, which four parts keep without spilling",
        "27 with 2,048 heads in one warp each",
        "40.0 where two warps take 30.8; with many heads 322 instead of 333 at B = 512, 171 instead of 177 at 256",
        "Kept from 8,192 heads up.",
    ),
    Tried(
        "Four parts where two warps take a head, with full rings first",
        "",
        "28.1 with 8 value heads at B = 256 (0.70), 49.9 at 512 (0.65); with two parts 29.8 and 53.8",
        "Kept, with a limit of 168 registers.",
    ),
    Tried(
        "Arrivals of a group counted at once, awaited at the end",
        "1 µs less a program",
        "1 to 4% more at every batch: what a program must remember until then spills",
        "No.",
    ),
    Tried("The same limits of registers for a ring of 32", "", "457 instead of 371", "No: a longer ring has none."),
)

FP8_RING = (
    Tried(
        "An FP8 state read by the tensor cores without a conversion; with a conversion on the CUDA cores",
        "",
        "223 and 323 to 340, without any write",
        "The first.",
    ),
    Tried(
        "Products of four warps with 16 columns instead of a warp's own, which Hopper compiles to a conversion to fp16",
        "",
        "k and q split before they are normalised are exact in two e4m3 terms, not four; the ring's weights take the "
        "other columns",
        "Kept.",
    ),
    Tried(
        "The first whole version, three launches",
        "0.36 of FlashInfer",
        "311, 0.54; 157 at B = 256, 80 at 128. Reading takes 178, preparing 13, writing 120, with 31 instructions an "
        "element",
        "No.",
    ),
    Tried("Tiles of 128 rows in two stages", "", "reads 19 µs faster", "Kept."),
    Tried(
        "A step that fills a ring reads its state twice, so that the write needs no k and q; random bits added in "
        "place; dot products of the ring's keys on the tensor cores",
        "0.39, 0.40, 0.42 and 0.58 at B = 512, 256, 128 and 32",
        "0.40, 0.43, 0.47 and 0.65. Of 228 µs reading takes 168, preparing 15, writing 45, of which the bytes explain "
        "16; without any write 0.32",
        "Kept. Asked for: 0.45, which it meets from B = 256 up; hoped for: 0.33.",
    ),
    Tried("A ring of 32", "", "277 instead of 228: it is read more than it saves writes", "No."),
    Tried(
        "A write of 16 rows, each head whole, in two or in four parts",
        "",
        "0.397, 0.396 and 0.405 at B = 512; 0.427, 0.425 and 0.428 at 256; 0.488, 0.468 and 0.467 at 128; 0.850, 0.708 "
        "and 0.647 at 32",
        "By the number of heads.",
    ),
    Tried(
        "Reading: tiles of 64 rows; two heads and one stage; 256 rows prefetched; none prefetched",
        "",
        "0.432, 0.392, 0.408 and 0.400 instead of 0.397",
        "Two heads and one stage from 8,192 heads up.",
    ),
)
