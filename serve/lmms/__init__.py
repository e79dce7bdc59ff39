"""The model ``comp_export`` of lmms-eval, which measures the artifacts of a run on published benchmarks."""
