"""What the numbers say. Nothing here trains or ranks; most of it reads tables.

classes        metrics class by class, and for rare and frequent classes
calibration    are class probabilities right as often as they say?
separation     are classes separable in embedding space, compared with the untrained network?
significance   bootstrap intervals and paired tests over query images
factors        do scores order images of one class by finer, unlabelled factors?
evaluation     everything that is measured of one row
pairs          which rows are compared with which
comparison     the report: tables of all variants, published results
examples       the report: example rankings
ablation       what each component of M3-Net contributes, from recorded experiments
sweeps         what a recorded sweep varied and reached
record         collect finished experiments into data/results
tables         README's tables of the recorded results
markdown       a table as Markdown
"""
