"""The specification of a campaign: its fields, their types and bounds, and the YAML file that holds them.

Start with `campaign.py`. `field_types.py` checks a value against its declared type, `yaml_fields.py` reads fields from
YAML with the line and column of each, `spec_file.py` reads and prints whole files, `code_trust.py` refuses code that
a file names unless the caller allows it.
"""
