"""lowdim: batched trainers and measures for the low-dimensional structure of learning.

Import the modules by name (``from lowdim.factorization import ...``). This file imports none of them,
so that a chapter depends on exactly the modules it uses.
"""

__version__ = "0.1.0"
