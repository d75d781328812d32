"""UltraSeg Study: the library behind the notebooks.

Data flows one way: layouts -> splits -> loading -> training -> study -> report -> notebooks.
"""

__version__ = "0.1.0"
