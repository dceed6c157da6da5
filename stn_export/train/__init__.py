"""The stage ``train``: one training, several in step, and the sweep over models and seeds.

In Python ``stn_export.train(data=...)``.
"""

from stn_export.callables import callable_package

callable_package(__name__, "stn_export.api:train")
