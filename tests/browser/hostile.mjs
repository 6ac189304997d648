// Text that is code where somebody takes it for markup. It has no blanks, so that a request line can carry it.

/** Sets `window.pwned` to the name of the place where it got through. */
export const MARKUP = (place) => `<script>window.pwned="${place}"</script>"'><img/src=x/onerror=window.pwned="${place}">`;
