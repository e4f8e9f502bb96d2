"""A federation on one machine with nothing left out: coordinator and hospitals as processes, DICOM over the network."""
