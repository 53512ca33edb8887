"""What computes metrics.

A head has `score_embeddings(vectors)`: (n,) scores of (n, width) L2-normalised image vectors, without a pass over the
images. A scorer has `batch_size`, the most images per call; `prepare(image)`, called from several threads, for an RGB
image of any size; and `scores(prepared, prompts)`: (n,) scores of n prepared images, each with its prompt.
"""
