// Host code, which the twin leaves out.
#pragma once
