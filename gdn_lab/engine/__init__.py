"""The whole model at decode, and the loop that serves requests with it.

model_sizes.py      sizes of a model's layers on one tensor-parallel rank, bytes of its weights
model_weights.py    random weights of all layers, embedding and head (weight_shares.py: a toy's, shared by ranks)
attention_layer.py  full attention (attention_kernels.py in Triton, attention_reference.py in PyTorch)
decoder.py          all layers for the tokens of one call, and the head that chooses tokens
model_steps.py      the steps that run in CUDA graphs: decode, verify and commit; prompt_step.py: prefill
part_times.py       how long each part of a decode step takes
engine_settings.py  the configuration that an engine's settings choose
kv_cache.py         the paged KV cache of the full-attention layers
served_model.py     ServedModel: prefill, decode in CUDA graphs, verify and commit
requests.py         prompts and answer lengths: drawn, or from a trace
serve.py            the loop: admission, prefill, decode or verify, one host read a step (in_flight.py, step_inputs.py)
speculation.py      drafts at a given acceptance rate
metrics.py          TPOT, ITL, TTFT and throughput as engines define them
capacity.py         how many requests fit into a GPU
serve_ranks.py      what `gdn-lab serve` does on each rank; row_log.py writes its rows
"""
