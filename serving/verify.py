"""`python -m serving.verify DIR`: `artifact.verify` under its old name.

`make compatibility` runs this command inside older images, so the name stays.
"""

import sys

from artifact.verify import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
