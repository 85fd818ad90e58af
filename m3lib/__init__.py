"""Fine-grained, attribute-specific fashion retrieval: M3-Net, its rivals and a plain classifier under one protocol.

A newcomer reads `systems` first (the networks and their losses), then `training.trainer`, then `retrieval` (scores,
ranking, metrics), then the notebooks, which call the rest. Each package lists its modules in its docstring.

systems         the networks, their losses, and the registry of systems
training        train one row of the comparison; embed images with a trained network
retrieval       the protocol: scores, ranking, relevance, metrics
data            what training reads: manifest, image store, batches; how files are written
prepare         readers of every source of images; Wardrobe, the rendered benchmark; packing into the store
analysis        what the numbers say: comparisons, significance, ablation, sweeps, recorded results
figures         charts, panels of images, UMAP
search          a searchable index of a catalogue, and the explore page
pipeline        run a notebook as a stage of dvc.yaml; check inputs before anything slow starts

errors          InputError: a user's mistake as one sentence
taxonomy        attributes, their classes, and class ids
compatibility   which score, loss and setting goes with which network
validation      check params.yaml, with sentences that name the setting
kinds           the types of the settings
layers          the preset and the source's own settings, laid over the general ones
config          params.yaml as frozen settings; the rows of the comparison

Everything may import these seven files. data, systems and figures import no other package; prepare and retrieval import
data; training imports data, systems and retrieval; analysis imports data and retrieval. search imports all of these but
analysis, and of prepare only photos; pipeline imports data and prepare. Nothing imports analysis, search or pipeline.
"""
