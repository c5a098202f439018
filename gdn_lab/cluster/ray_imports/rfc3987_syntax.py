"""Hides the package of this name from Ray's own processes.

They import jsonschema, which imports it where it is installed, as JupyterLab has it: that builds a grammar for seconds
in each process, and a busy machine then misses Ray's limits for starting.
"""

raise ImportError("rfc3987_syntax is hidden from Ray's processes; see gdn_lab/cluster/ray_imports")
