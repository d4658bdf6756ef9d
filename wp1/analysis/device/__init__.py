"""What the device did: utilisation, energy, MFU and MBU."""
