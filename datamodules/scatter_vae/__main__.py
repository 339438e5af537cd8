"""``python -m orrery.datamodules.scatter_vae convert``: Gaia's files as shards."""

from orrery.datamodules.scatter_vae.convert import main

raise SystemExit(main())
