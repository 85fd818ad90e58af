"""Fine-grained, attribute-specific fashion retrieval: M3-Net and its rivals under one protocol.

Data flows one way, and a module imports only from the floors below its own:

1. `errors`, `taxonomy`, `checked`, `config`, `abilities`: what is asked about, and every setting, checked once.
2. `devices`, `store`, `streams`, `manifest`, `images`, `tables`, `prints`, `people`, `garments`, `styles`, `wardrobe`,
   `released`, `benchmarks`, `deepfashion`, `fashionai`, `darn`, `sources`: any data set becomes one manifest and one
   image store.
3. `metrics`, `losses`, `attention`, `backbone`, `batches`, `samplers`, `parallel`, `neighbors`: the mathematics, on
   arrays and tensors alone.
4. `system`, `asen`, `modc`, `m3net`, `models`, `objective`, `schedule`: each system a small class, what a step
   minimises, and when.
5. `retrieval`, `likeness`, `report`, `recorded`, `ablation`, `maps`, `figures`, `gallery`: embeddings to rankings,
   tables and pictures.
6. `inference`, `training`: fits a variant and embeds images with it.
7. `workers`, `search`, `indexing`: a catalogue that can be searched by attribute and by class.
8. `inputs`, `run`, `record`, `bench`, `bench_data`, `bench_ranking`, `bench_search`, `bench_train`, `bench_load`,
   `search_costs`, `explore`: the first look, a notebook as a stage, results collected, costs, a page to search on.
"""
