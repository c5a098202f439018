"""First versions of libraries that an engine's rules and this workbook's backends both ask for. Imports nothing."""

# By compute capability (major): the first FlashInfer with its pool-mode decode kernels.
FLASHINFER = {9: "0.6.4", 10: "0.6.5"}
