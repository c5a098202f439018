"""The whole model at decode, and the loop that serves requests with it.

model_sizes.py      sizes of a model's layers on one tensor-parallel rank, bytes of its weights
model_weights.py    random weights of all layers, embedding and head
cache.py            the paged KV cache of the full-attention layers
served_model.py     ServedModel: prefill, decode in CUDA graphs, verify and commit
"""
