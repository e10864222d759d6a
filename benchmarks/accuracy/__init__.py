"""Does ASR help? CIFAR-100, paired seeds, a plan that was committed before the first run.

    python -m benchmarks.accuracy.train --data FOLDER_OR_TAR --work WORK      # goes on where it was stopped
    python -m benchmarks.accuracy.table                                       # tables from the raw files

`plan.yaml` fixes what is trained, what is compared and how it is judged. One JSON a run lies in `results/`.
"""
