"""What a person looks at: tables, pictures and one page of a Stripe Observation.

What: ``write_report`` leaves a folder with JSON and CSV tables, PNG pictures for papers and one self-contained HTML
page.
Paper: the pictures are those in which the paper shows the stripes: images against channels, and the attention's values
over training (ASR, Huang et al. 2024, section 2).
Why here: matplotlib, plotly and jinja2 are extras that the observation itself must not need; they are imported when a
picture is drawn.
"""

from __future__ import annotations
