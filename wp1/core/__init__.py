"""What every other folder uses: the plan, records, files, identity and errors. It imports no other folder."""
