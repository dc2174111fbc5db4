"""Faults as hardware makes them: measured distributions, fault maps, memories, systolic arrays, sensors.

Each is a fault model that `faults/registry.py` loads by name when it is asked for. `distribution.py` (its file in
`distribution_file.py`), `fault_map.py` and `memory_faults.py` (over `memory_layout.py`) read descriptions through
`fault_description.py`; `array.py` maps a processing element to outputs; `cells.py`, `intermittent.py` and `sensors.py`
need no file.
"""
