"""What every stage needs: output folders, logging, command lines, errors, files."""
