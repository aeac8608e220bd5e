/* e^r for |r| <= ln 2 / 2 as 1 + r + r^2 (C0 + C1 r + ...), and ln 2 in two parts (Cody & Waite, 1980), the first of
 * which has so few bits that its multiples are exact: the coefficients of Cephes' expf (Moshier, 1992). */
#ifndef NIB_EXPONENTIAL_H
#define NIB_EXPONENTIAL_H

#define NIB_LOG2_E   1.44269504088896341f
#define NIB_LN2_HIGH 0.693359375f
#define NIB_LN2_LOW  -2.12194440e-4f

/* Highest power first, as Horner's rule takes them. */
#define NIB_EXP_TERMS 6
static const float nib_exp_term[NIB_EXP_TERMS] = {1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f,
                                                  4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f};

#endif
