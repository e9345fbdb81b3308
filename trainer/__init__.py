"""DINOv2 training: a folder of photos in, a backbone file out.

`config` says what a run is, `train` runs it. A step reads: crops (`data`, `augment`), masks (`masking`), teacher's
targets and student's outputs (`student_teacher`, `heads`), `losses`, then `optim`. `snapshot` keeps it, `watch` stops
it when it collapses.
"""
