/* Cannot start: its library, libabsent.so, is in no guest. */
int absent(void);

int main(void)
{
    return absent();
}
