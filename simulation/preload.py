"""What all worker processes need, imported once in the server from which they are forked (`machine.executor`)."""

from conf.imports import import_monai_alone

import_monai_alone()

import monai.networks.nets  # noqa: E402, F401

import simulation.hospital  # noqa: E402
import simulation.scoring  # noqa: E402, F401
