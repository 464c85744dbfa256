"""Learning rules without, or beyond, ordinary backpropagation, as PyTorch Lightning modules.

The package itself imports nothing heavy, so that ``nobp list`` and ``nobp show`` answer at once; import from
:mod:`lightning_nobp.rules`, :mod:`lightning_nobp.datamodules`, :mod:`lightning_nobp.nn`,
:mod:`lightning_nobp.functional` and :mod:`lightning_nobp.callbacks`.
"""

__version__ = "0.1.0"
