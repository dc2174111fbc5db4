"""The specification of a campaign: its fields, their types and bounds, and the YAML file that holds them.

Start with `campaign.py`; `designs.py` has what trials there are, `settings.py` data, scoring and engine.
`flat_fields.py` turns all of them into the flat fields of flags and files, and back, and checks their types.
`yaml_fields.py` reads fields from YAML with the line and column of each, `spec_file.py` reads and prints whole files,
and refuses code that a file names unless the caller allows it.
"""
