"""The proof of "any model": attach, train, fold and compare over timm, torchvision and transformers.

`python -m tests.zoo.run` sweeps (resumable) and writes `results/`: one JSON line per model, and a summary.

    subject.py     what is tested: how to build one model and what to feed it
    models_*.py    the subjects of each library
    prepare.py     random weights and calibrated statistics, so that a wrong fold cannot hide
    check.py       the life of one model, and every figure measured on it
    measure.py     how outputs are compared, and what is promised
    worker.py      the process that runs models; it may crash or hang without ending the sweep
    run.py         the sweep
    record.py      results on disk
    summary.py     results/SUMMARY.md
"""
