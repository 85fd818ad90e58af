"""Fine-grained, attribute-specific fashion retrieval: M3-Net and its rivals under one protocol.

Data flows one way, and a module imports only from the floors below its own:

1. `errors`, `taxonomy`, `config`: what is asked about, and every setting, checked once.
2. `manifest`, `images`, `garments`, `wardrobe`, `sources`: any data set becomes one manifest and one image store.
3. `metrics`, `attention`, `models`, `losses`: the mathematics, on arrays and tensors alone.
4. `training`, `retrieval`, `figures`: what the notebooks call.
5. `run`: executes a notebook as a pipeline stage.
"""
