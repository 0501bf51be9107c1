import sys
from pathlib import Path

# The fuzzer's modules are a program beside these tests, and lie on no path.
sys.path.insert(0, str(Path(__file__).parent))
