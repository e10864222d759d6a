"""Where stripefold meets the libraries that people train with.

What: callbacks for Lightning (``lightning``) and for transformers' Trainer (``transformers``), a trainer class for
ultralytics (``ultralytics``). timm, torchvision and segmentation-models-pytorch need no code: their pages in
``docs/integrations`` show the loop.
Why here: these libraries build, copy, save and load models on their own, and each has one place where attaching and
folding belong. Nothing here needs the workbench; each library is imported by its own module only.
"""
