"""Print the README's code blocks that follow `<!-- ci -->` as one shell script.

A `sh` block is printed as it is, a `python` block as a call of python.
"""

import re
import sys
from pathlib import Path

BLOCK = re.compile(r"^<!-- ci -->\n```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def script(markdown: str) -> str:
    """The commands of all marked blocks; ValueError when there are none."""
    blocks = BLOCK.findall(markdown)
    if not blocks:
        raise ValueError("no block is marked with <!-- ci -->")
    return "\n".join(
        code if language == "sh" else f"python - <<'END_OF_BLOCK'\n{code}END_OF_BLOCK\n"
        for language, code in blocks
    )


if __name__ == "__main__":
    sys.stdout.write(script(Path(sys.argv[1]).read_text(encoding="utf-8")))
