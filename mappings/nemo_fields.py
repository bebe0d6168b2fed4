"""Model configs <-> the fields of NeMo 2's config classes.

io.json holds only fields that were set; for the rest NeMo takes the class's defaults, so those of
every class of a family are known as data (:mod:`nemoconv.mappings.nemo_configs`).
"""
