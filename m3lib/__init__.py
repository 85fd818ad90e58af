"""Fine-grained, attribute-specific fashion retrieval: M3-Net and its rivals under one protocol.

Data flows one way, and a module imports only from the floors below its own:

1. `errors`, `taxonomy`, `config`, `abilities`: what is asked about, and every setting, checked once.
2. `store`, `manifest`, `images`, `tables`, `prints`, `people`, `garments`, `styles`, `wardrobe`, `released`,
   `benchmarks`, `deepfashion`, `fashionai`, `darn`, `sources`: any data set becomes one manifest and one image store.
3. `metrics`, `losses`, `attention`, `backbone`, `batches`, `samplers`: the mathematics, on arrays and tensors alone.
4. `system`, `asen`, `modc`, `m3net`, `models`, `objective`, `schedule`: each system a small class, what a step
   minimises, and when.
5. `retrieval`, `likeness`, `report`, `ablation`, `maps`, `figures`: embeddings to rankings, tables and pictures.
6. `training`: fits a variant and embeds images with it.
7. `inputs`, `run`, `record`, `bench`, `bench_data`: the first look, a notebook as a stage, results collected, costs.
"""
